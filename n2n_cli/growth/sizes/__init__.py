"""Room 3, size: from what the user asks for to a size for every group, and to the remapping of each."""
