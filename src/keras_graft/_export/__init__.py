"""`export`: what a model computes in inference mode, as a file for another runtime, and the proof that it is that.

It must not know how the model was made, nor what trains in it.
"""
