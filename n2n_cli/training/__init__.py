"""One training loop for every arm of a study, grown or random.

``fit`` (loop.py) trains from the start checkpoint that it finds in a run folder; ``evaluate`` measures a network
exactly on any number of ranks; ``launch`` starts the ranks; ``checkpoint`` writes and reads the state of a run.
Growth matters here in one place only: a student may take over its teacher's optimizer state (``optim.travelled``),
and with it a learning rate for each entry of a tensor (``state.Run.rates``).
"""
