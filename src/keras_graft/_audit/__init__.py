"""What a model does in `fit` and in `predict`, put together and shown: a table, JSON, a page with a picture.

It reports findings and makes none. It must not know what a policy is, nor how a layer is found out.
"""
