"""Self-supervision: representations from data without labels.

One module per technique; `wellposed.core.registry` finds them. Losses of two embeddings are criteria of the task
`wellposed.TwoViews`.
"""
