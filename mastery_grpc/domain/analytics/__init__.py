"""Looking back at one student and comparing groups of them: statistics and what they bear out, in words."""
