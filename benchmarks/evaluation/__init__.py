"""Method x data set x seed: train each combination, measure it on the test set, tabulate it beside published values.

tasks.py       the tasks of an evaluation: methods, data sets, seeds, options
evaluate.py    runs the tasks, each in a separate process
measure.py     the program of such a process: trains one bundle and measures it
cells.py       stored results, one file per task
tables.py      tables of the cells
published.py   values that the papers report
"""
