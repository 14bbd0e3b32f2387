"""The project's bench: fastfwd beside the programs it is compared with, `python -m bench`.

The way of a figure is the layout: a scenario (bench/scenarios) says what is measured;
a lab (lab) has the backends; a contender (contenders) is started fresh for every
single measurement; clients (clients) put load on it; what came, round by round, is a
result (results), which report and plots turn into tables and pictures.
Nothing here is imported by fastfwd, and nothing here judges: targets only compares.
"""
