/* Weft: distributed machine learning as a C library.
 *
 * One program, any split: write a loss (and a regulariser) once, as tensor math; train it on one core or on many ranks by
 * changing a strategy, never the model. The headers are the manual; this is the map.
 *
 *   describe        graph.h     inputs, parameters, elementwise math, reductions, shapes, products, gradients
 *                   layers.h    linear, convolution, pooling, norms, attention, embedding, dropout, mixtures of experts
 *                   loss.h      cross-entropy, squared error, Huber, binary cross-entropy
 *                   custom.h    operations of your own
 *                   placement.h  where parts of a graph are computed
 *   train           solver.h    solvers, schedules, regularisers: plain values
 *                   strategy.h  how the program is split over ranks
 *                   compression.h  gradients in fewer bytes between ranks
 *                   trainer.h   loss + solver + strategy = a trainer; steps, saving, evaluation
 *                   fit.h       the usual loop: progress, metrics, plot, checkpoints
 *   feed            loader.h    batches from IDX images, text and arrays: shuffled, sharded, read ahead, resumable
 *                   batch.h     what a batch is
 *                   idx.h npy.h table.h tokens.h              the files below that
 *   look inside     plan.h      what will run: exact bytes and operations before anything is allocated
 *                   variables.h parameters and states by name
 *                   array.h dlpack.h         storage, views, exchange with other libraries
 *   keep            checkpoint.h safetensors.h metrics.h plot.h tensorboard.h timeline.h
 *   run             world.h     this process's rank, device and link to the others
 *                   server.h    parameter server: tables that workers push to and pull from, at clocks or asynchronously
 *                   entries.h   elements of its rows: what is not zero of wide ones, pushed and pulled by column
 *                   updates.h   what threads add up before it is pushed, with sums that have no order
 *                   vectors.h   its dense tables as vectors: arithmetic where they lie
 *                   snapshot.h  its snapshots as files: verified, dealt out anew, made one
 *                   slices.h    tables larger than memory: blocks of data work through slices of rows
 *                   lbfgs.h     L-BFGS on it, with units of work that go to whoever is idle
 *                   coordinate.h  L1 and elastic-net problems: each rank its part of the weights, by schedule
 *                   factor.h    matrix factorisation, by blocks that go round
 *                   collective.h  groups of ranks: reductions, exchanges and messages on plain memory
 *                   wire.h      a wire of your own between the ranks
 *                   threads.h   whose threads compute
 *                   status.h memory.h log.h  errors, memory, messages
 *
 * Errors: builders of graphs latch the first error and go on; everything else returns a weft_status that must be looked at, and
 * weft_error_message() says what went wrong. Nothing is global but hooks: several worlds may live in one process. */
#ifndef WEFT_H
#define WEFT_H

#include "weft/array.h"
#include "weft/batch.h"
#include "weft/checkpoint.h"
#include "weft/collective.h"
#include "weft/compression.h"
#include "weft/coordinate.h"
#include "weft/custom.h"
#include "weft/dlpack.h"
#include "weft/draw.h"
#include "weft/dtype.h"
#include "weft/entries.h"
#include "weft/factor.h"
#include "weft/fit.h"
#include "weft/graph.h"
#include "weft/idx.h"
#include "weft/layers.h"
#include "weft/lbfgs.h"
#include "weft/loader.h"
#include "weft/log.h"
#include "weft/loss.h"
#include "weft/memory.h"
#include "weft/metrics.h"
#include "weft/npy.h"
#include "weft/placement.h"
#include "weft/plan.h"
#include "weft/plot.h"
#include "weft/safetensors.h"
#include "weft/server.h"
#include "weft/shape.h"
#include "weft/slices.h"
#include "weft/snapshot.h"
#include "weft/solver.h"
#include "weft/status.h"
#include "weft/strategy.h"
#include "weft/table.h"
#include "weft/tensorboard.h"
#include "weft/threads.h"
#include "weft/timeline.h"
#include "weft/tokens.h"
#include "weft/trainer.h"
#include "weft/variables.h"
#include "weft/updates.h"
#include "weft/vectors.h"
#include "weft/wire.h"
#include "weft/world.h"

#endif
