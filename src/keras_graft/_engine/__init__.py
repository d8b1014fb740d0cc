"""A new model from a model: a policy, a decision for each layer, the copy, and the proof that it is one.

It must not know of heads and losses.
"""
