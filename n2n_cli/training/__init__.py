"""One training loop for every arm of a study; nothing in here knows about Net2Net.

``fit`` (loop.py) trains whatever start checkpoint it finds in a run folder; ``evaluate`` measures a network
exactly on any number of ranks; ``launch`` starts the ranks; ``checkpoint`` keeps what a run is made of.
"""
