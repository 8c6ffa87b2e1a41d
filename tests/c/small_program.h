/* A program of two layers, of F32 weights in a file that is made here. */
#ifndef MMRT_TESTS_SMALL_PROGRAM_H
#define MMRT_TESTS_SMALL_PROGRAM_H

#include "mmrt.h"
#include "check.h"

#include <stdio.h>
#include <stdlib.h>

enum { VOCABULARY = 512, WIDTH = 64, HIDDEN = 128, HEADS = 2, HEAD_DIM = 32, LAYERS = 2 };
enum { QKV = (HEADS + 2) * HEAD_DIM, MOST_TOKENS = 64 };

#define SMALL_LAYER                                                                                \
    {.kind = MMRT_STATE_PAGES,                                                                     \
     .n_heads = 1,                                                                                 \
     .k_dim = HEAD_DIM,                                                                            \
     .v_dim = HEAD_DIM,                                                                            \
     .k_type = 1,                                                                                  \
     .v_type = 1}
static const mmrt_layer_state small_layers[LAYERS] = {SMALL_LAYER, SMALL_LAYER};

/* The weights in their order in the file: embeddings, each layer's seven, the last norm, logits. */
enum { OF_LAYER = 6, N_WEIGHTS = 1 + OF_LAYER * LAYERS + 2 };

static void small_weight(int i, mmrt_weight *w) {
    static const struct {
        uint64_t rows, cols;
        const char *name;
    } layer[OF_LAYER] = {
        {1, WIDTH, "norm"},      {QKV, WIDTH, "qkv"},   {WIDTH, WIDTH, "out"},
        {HIDDEN, WIDTH, "gate"}, {HIDDEN, WIDTH, "up"}, {WIDTH, HIDDEN, "down"},
    };
    *w = (mmrt_weight){.type = 0, .rows = VOCABULARY, .cols = WIDTH, .name = "embedding"};
    if (i == N_WEIGHTS - 2)
        w->rows = 1, w->name = "last norm";
    else if (i > 0 && i < N_WEIGHTS - 2)
        w->rows = layer[(i - 1) % OF_LAYER].rows, w->cols = layer[(i - 1) % OF_LAYER].cols,
        w->name = layer[(i - 1) % OF_LAYER].name;
}

static bool make_small_file(const char *path) {
    FILE *file = fopen(path, "wb");
    uint32_t random = 1;
    for (int i = 0; file && i < N_WEIGHTS; i++) {
        mmrt_weight w;
        small_weight(i, &w);
        for (uint64_t j = 0; j < w.rows * w.cols; j++) {
            random = random * 1664525u + 1013904223u;
            const float value = ((float)(random >> 8) / (1 << 24) - 0.5f) * 0.5f;
            const float written = w.rows == 1 ? 1 + value : value;
            fwrite(&written, sizeof written, 1, file);
        }
    }
    return file && fclose(file) == 0;
}

/* The operations that follow the EMBED, with weights numbered as in the file. */
static mmrt_status add_small_ops(mmrt_program *program, mmrt_error *err) {
    enum { STREAM, NORMED, PROJECTED, ATTENDED, CHANGE, GATED };
    const mmrt_op none = {.in = -1,
                          .out = -1,
                          .stream = -1,
                          .weights = {-1, -1, -1},
                          .biases = {-1, -1, -1},
                          .scales = {1, 1, 1},
                          .rope = -1,
                          .n_heads = HEADS,
                          .eps = 1e-5f,
                          .scale = 0.2f};
    mmrt_op ops[1 + 7 * LAYERS + 2];
    int n = 0;
    ops[n] = none, ops[n].kind = MMRT_OP_EMBED, ops[n].out = STREAM, ops[n].scale = 1;
    ops[n++].weights[0] = 0;
    for (int layer = 0; layer < LAYERS; layer++) {
        const int32_t w = 1 + OF_LAYER * layer;
        ops[n] = none, ops[n].kind = MMRT_OP_NORM, ops[n].stream = STREAM, ops[n].out = NORMED;
        ops[n].in = layer ? CHANGE : -1, ops[n++].weights[0] = w;
        ops[n] = none, ops[n].kind = MMRT_OP_LINEAR, ops[n].in = NORMED, ops[n].out = PROJECTED;
        ops[n++].weights[0] = w + 1;
        ops[n] = none, ops[n].kind = MMRT_OP_ROPE, ops[n].in = PROJECTED, ops[n].layer = layer;
        ops[n].out = PROJECTED, ops[n++].rope = 0;
        ops[n] = none, ops[n].kind = MMRT_OP_ATTEND, ops[n].in = PROJECTED, ops[n].layer = layer;
        ops[n++].out = ATTENDED;
        ops[n] = none, ops[n].kind = MMRT_OP_LINEAR, ops[n].in = ATTENDED, ops[n].out = NORMED;
        ops[n++].weights[0] = w + 2;
        ops[n] = none, ops[n].kind = MMRT_OP_GLU, ops[n].in = NORMED, ops[n].out = GATED;
        ops[n].weights[0] = w + 3, ops[n++].weights[1] = w + 4;
        ops[n] = none, ops[n].kind = MMRT_OP_LINEAR, ops[n].in = GATED, ops[n].out = CHANGE;
        ops[n++].weights[0] = w + 5;
    }
    ops[n] = none, ops[n].kind = MMRT_OP_NORM, ops[n].stream = STREAM, ops[n].in = CHANGE;
    ops[n].out = NORMED, ops[n].outputs_only = true, ops[n++].weights[0] = N_WEIGHTS - 2;
    ops[n] = none, ops[n].kind = MMRT_OP_LOGITS, ops[n].in = NORMED, ops[n].outputs_only = true;
    ops[n++].weights[0] = N_WEIGHTS - 1;
    mmrt_status status = MMRT_OK;
    for (int i = 0; !status && i < n; i++)
        status = mmrt_program_add_op(program, &ops[i], err);
    return status;
}

/* Ready for steps of up to MOST_TOKENS on n_threads, with weights that can be streamed, and
 * sequences of `store`, of small_layers. */
static mmrt_status make_small_program(mmrt_mapping *mapping, mmrt_state_store *store, int n_threads,
                                      mmrt_program **out, mmrt_error *err) {
    static const uint32_t widths[] = {WIDTH, WIDTH, QKV, WIDTH, WIDTH, HIDDEN};
    const uint8_t *at = mmrt_mapping_data(mapping);
    double frequencies[HEAD_DIM / 2];
    mmrt_program *program = NULL;
    int32_t index;
    for (int i = 0; i < HEAD_DIM / 2; i++)
        frequencies[i] = 1.0 / (1 + i);
    mmrt_isa isa;
    mmrt_status status = mmrt_isa_choose(&isa, err);
    if (!status)
        status = mmrt_program_create(isa, MOST_TOKENS, store, false, &program, err);
    for (int i = 0; !status && i < N_WEIGHTS; i++) {
        mmrt_weight w;
        small_weight(i, &w);
        w.data = at;
        at += w.rows * w.cols * sizeof(float);
        status = mmrt_program_add_weight(program, &w, &index, err);
    }
    for (size_t i = 0; !status && i < sizeof widths / sizeof *widths; i++)
        status = mmrt_program_add_buffer(program, widths[i], 1, &index, err);
    if (!status)
        status = mmrt_program_add_rope(program, frequencies, HEAD_DIM / 2, 1, &index, err);
    if (!status)
        status = add_small_ops(program, err);
    if (!status)
        status = mmrt_program_finish(program, n_threads, err);
    if (!status)
        status = mmrt_program_stream(program, &mapping, 1, err);
    if (status)
        mmrt_program_free(program);
    else
        *out = program;
    return status;
}

#endif
