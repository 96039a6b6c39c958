"""The mastery engine: one live mastery score for every student of a learning platform."""
