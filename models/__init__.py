"""The system under study: recommenders, what they learn from, how they are judged.

Importing `models` imports nothing else; name the module that is wanted:

    from models.data import load, toy
"""
