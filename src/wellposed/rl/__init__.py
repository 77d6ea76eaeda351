"""Reinforcement learning: bandits, tabular problems, and what regularises policies.

One module per technique; `wellposed.core.registry` finds them. The task on token ids is `Policy`.
"""
