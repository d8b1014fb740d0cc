"""What a model or a head ends in, and whether a loss takes that.

It must not know of branches and merges, nor how a model is trained.
"""
