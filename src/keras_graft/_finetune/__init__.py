"""`unfreeze`, `freeze` and `Unfreezing`: which layers of the branches train, once the head is trained.

It must not know how a branch was made, nor how a model is trained.
"""
