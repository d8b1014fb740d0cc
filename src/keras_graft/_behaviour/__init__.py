"""What a layer does in training mode that it does not do in inference mode.

By the table, by the modes that it runs in, by a trace or a trial of its call, and on data; and the findings, a row for
each layer. It must not know of policies, branches, heads or training.
"""
