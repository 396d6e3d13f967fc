"""A plugin for tests: fits a straight line. Laid out as a real one."""
