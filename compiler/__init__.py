"""From a traced graph to an executable: graph -> build -> passes -> lower -> target; `pipeline.py` reads as the
architecture.
"""
