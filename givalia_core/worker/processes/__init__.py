"""The processes of a worker: they are made, watched and replaced here.

The door is `generations`. Nothing is imported here, because the nursery is one of these modules and runs without the others.
"""
