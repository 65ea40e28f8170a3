"""All numbers that lineage decides by or reads by: what each decides, its unit, and how it was chosen.

"Set on MiniLM" means: on trainings of all-MiniLM-L6-v2; no other architecture was looked at. "By the argument" means: it
follows from a distribution or a format. "Cost" only bounds time or memory: larger finds the same or more. "Not recorded" means
that nobody wrote down how it was chosen; what is said beside it is what speaks for its size. Whoever changes one runs
`benchmarks/zoo_lineage.py`.
"""

# What is read

# Elements of matrices that are sampled of a whole checkpoint. Cost, and the error of every cosine: 1 / sqrt of it.
TOTAL = 2**16
# Elements that are sampled of each tensor at least. Not recorded.
LEAST = 256
# Neighbouring elements that are read together. Cost: a page of a file.
RUN = 64
# Runs of a tensor: of more, a few are drawn, for to put all in order would take memory in proportion to the tensor. Cost.
ORDERED = 2**20
# Elements that are read of each checkpoint for the direction of one pair. Cost.
ELEMENTS = 2**22
# Rows and columns of a matrix that are read to tell the kind of an edge. Cost.
CORNER = 256
# Rows and columns of a smaller corner that shows full rank cheaply. Cost.
FIRST = 96
# Elements that `diff` reads at once. Cost: 16 MiB as float32.
CHUNK = 2**22

# Families: who is related at all

# Correlation of two layers' sampled matrices from which on they stand for one layer. Not recorded: far descendants stay above.
MATCH = 0.2
# The same in standard errors (1 / sqrt(sample)) for small samples. By the argument: independent layers stay within 6 of 0.
CHANCE = 6.0
# p-value of the independence test times the number of pairs (Bonferroni), up to which a model joins. Not recorded: a usual level.
LEVEL = 0.01

# Direction: which of two came first (tau: 1/2 parent, 0 siblings, -1/2 child)

# Prior deviation of the shrinkage by weight decay, a share of the weights. Not recorded.
SHRINKAGE = 2e-3
# Deviation of tau beyond its standard error: what the model of independent updates leaves out. Set on MiniLM.
MODEL_ERROR = 0.15
# Deviation of tau for two children of one lost parent: their distances to it differ. Set on MiniLM.
LOST = 0.2
# Standard error of tau above which a card may name the parent. Not recorded: half of the way from a parent to siblings.
OPEN = 0.25

# Trees: who is next to whom

# Share of a path within which a third checkpoint joins at its end. Not recorded: half of the way to the middle.
AT_END = 0.25
# Standard error of that share up to which a third checkpoint is asked at all. Not recorded.
JOIN_ERROR = 0.1
# Cosine up to which two steps are at a right angle (a chain, not siblings). Set on MiniLM: second trainings have 0.015 and
# less, separate ones that look like a chain 0.05 and more.
TURN = 0.03
# The same for small models: this over sqrt(parameters). Not recorded: their trainings have fewer directions to go.
FREEDOM = 12.0
# Standard errors (1 / sqrt(sample)) that are added to both. By the argument: the cosine is of a sample.
TURN_ERRORS = 3.0
# Share of the way that the first step of a chain must be to tell anything. Set on MiniLM.
SHORT = 0.25
# Prior of a lost parent between two neighbours: another joins at one of them; all that join do so between; no others.
# Not recorded.
LOST_JOINED, LOST_BETWEEN, LOST_ALONE = 0.02, 0.5, 1 / 3
# Posterior of a lost parent above which two are not linked. By the argument: more likely than not.
LOST_SURE = 0.5
# Posterior of a direction from which on a link is an edge. Not recorded.
SURE = 0.8
# Links that are tried for a checkpoint. Cost: each reads weights.
ATTEMPTS = 8
# Likelihoods (forward, backward, neither) of a copy that was pruned or rounded. By the argument: structure leaves no doubt.
CERTAIN = (1.0, 1e-30, 1e-30)
# Likelihood of "neither" beside 1 for the known direction of pruned and trained weights, where two or more others join at an
# end, and where not: tau cannot tell a child from a pruned sibling. Not recorded.
NEITHER_JOINED, NEITHER = 3.0, 60.0
# Standard errors by which a degraded copy is put behind its original. By the argument: what is nearer by chance stays behind.
BEHIND = 6.0

# Kinds: what was done

# Share of elements that are zero beyond the parent's, from which on it is pruned. Not recorded: training makes none.
ZEROS = 0.03
# Share of elements that must be equal (or so rounded) for a pruned or rounded copy. Not recorded: all but a few ties.
ALIKE = 0.999
# Share of elements within half a step of the parent's for a grid. Not recorded: all but what was clipped.
ON_GRID = 0.99
# Levels of a grid at most. Not recorded: 8 bits have 256.
LEVELS = 1024
# Share of a child's zeros that the parent has, from which on the child was not pruned again. Not recorded.
INHERITED = 0.9
# Mean square of the parent's weights where the child has zeros, of that of all its weights, from which on pruning took them:
# what grows again after pruning is small. Not recorded.
COUNTS = 0.01
# Rank of a change, of the smaller side of the matrix, up to which it is low. Not recorded.
LOW_RANK = 1 / 4
# Share of sampled elements that are equal, beyond another's, that shows matrices which training left alone. Not recorded.
FROZEN = 0.02
# Nearest checkpoints that are looked at as the source of a rounded one. Cost.
NEAR = 16

# Merges

# Sources of a linear merge, and checkpoints that are tried as the origin of changes. Cost.
MOST, HUBS = 8, 12
# Sources of a sparse merge, and checkpoints that are tried as its base. Cost.
SPARSE_SOURCES, BASES = 4, 4
# Of the squared change, what least squares may leave beside rounding. Not recorded.
UNEXPLAINED = 0.02
# Coefficient of a relation, of the largest, from which on two may be the merge, and the direction decides. Not recorded.
AS_LARGE = 0.93
# Coefficient below which a checkpoint is no source. Not recorded.
NO_SOURCE = 1e-3
# Smallest singular value of relations of length 1, below which one follows from the others. Not recorded.
FOLLOWS = 1e-2
# Share of elements that are exactly the base's for a sparse merge: at least, at most. Not recorded.
BASE_LEAST, BASE_MOST = 0.03, 0.995
# Of the elements that changed, those that ratios must explain for a sparse merge. Not recorded.
EXPLAINED = 0.8
# Cosine of a source's change with the merge's, and share of its elements with one ratio, to be a source. Not recorded.
SOURCE_COSINE, SOURCE_SHARE = 0.1, 0.05
