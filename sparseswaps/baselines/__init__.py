"""Published methods to compare with, from their papers' formulas: masks, and new weights for masks."""
