"""Chips: facts with their sources, their arithmetic, worst cases, and placement onto cores."""
