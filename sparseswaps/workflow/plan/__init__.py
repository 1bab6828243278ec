"""The plan of a study before it runs: sizes of its models, and memory, disk and time of each job.

May import: what workflow may import.
"""
