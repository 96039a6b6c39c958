"""Forecasts of a student's mastery, made from the past alone."""
