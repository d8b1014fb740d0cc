"""`fit_head`: what `fit` does, with the frozen part computed once and fed in place of the inputs.

It must not know how a model is cut, nor how features are computed and kept.
"""
