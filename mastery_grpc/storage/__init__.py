"""The ports on Redis: keys, the commit script, repository, cache and announcements."""
