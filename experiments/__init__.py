"""Studies: cells that are run once, records that survive, tables and pictures made from the records."""
