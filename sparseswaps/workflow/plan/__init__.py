"""What a study needs before it runs: sizes of its models, memory, disk and time of each job.

May import: what workflow may import.
"""
