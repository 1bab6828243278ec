"""Tables, figures and the HTML page of a study, from its measurements.

May import: base.
"""
