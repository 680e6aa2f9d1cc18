"""Room 5, prove: the function gap, where a student goes astray, and what is mended or held then."""
