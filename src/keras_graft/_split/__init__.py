"""A model cut at its frontier: what computes the same in every epoch, and the rest.

It must not know what either half is good for, nor of policies.
"""
