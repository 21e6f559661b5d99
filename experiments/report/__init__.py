"""What the committed records say: runs and claims, shown in tables, on a page and in the README."""
