"""Run folders made into what other tools open."""
