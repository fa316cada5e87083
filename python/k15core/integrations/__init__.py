"""k15core inside other stacks: one file a stack, each of which imports that stack and no other.

Importing this package imports none of them. `packed` holds what they share.
"""
