"""The processes of a worker: made by a nursery, a crew for each generation, watched and replaced.

The door is `generations`. Nothing is imported here, for the nursery is one of these modules, and runs without the others.
"""
