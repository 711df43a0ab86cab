"""Studies: a grid of models, trained and measured alike, with statistics and a recommendation.

``file`` reads the study file, ``trials`` resolves it, ``runner`` and ``worker`` run it, ``summarise`` concludes.
"""
