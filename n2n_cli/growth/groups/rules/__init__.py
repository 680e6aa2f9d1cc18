"""Rules, one per operation: which axes of its inputs and outputs must grow together.

A rule reads the labels of an operation's tensors, unifies what must grow together, fixes what may not grow, ties what
may only grow by whole numbers, and labels the results. It is called as ``rule(ctx, op)``, and speaks by the verbs of
`structure.Context`. A form of the call that it does not know raises `structure.UnknownCall`; anything else that it
raises is a fault of the rule.
"""
