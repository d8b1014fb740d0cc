"""`freeze_and_merge`: models, frozen, under a new head, which is all that trains.

The recipe, its branches, merges and stages. It must not know how a layer is copied, nor what it does in training mode.
"""
