"""The method of ReSearch: protocol, episode, reward, clients and question sets.

A pure library: it starts no server, needs no torch, and imports in milliseconds.
"""
