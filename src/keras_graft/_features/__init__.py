"""Features: computed once, as `predict` gives them, told apart by all that they hang on, and kept.

It must not know what a model means, where it is cut, or how it is trained.
"""
