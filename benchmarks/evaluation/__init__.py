"""Method x data set x seed: train each combination, measure it on the test set, tabulate it beside published values.

tasks.py       what is asked for: methods, data sets, seeds, options
evaluate.py    runs the tasks, each in a process of its own
measure.py     what such a process does: train one bundle and measure it
cells.py       what was measured, as it is stored
tables.py      the cells as tables
published.py   what the papers report
"""
