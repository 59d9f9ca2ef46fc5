"""Tables that have nothing in common with the contest's but their purpose, and what must work on them without an edit."""
