/* Keys of latent attention (DeepSeek-AI 2024, arXiv:2405.04434): one row for all heads, of which
 * the first elements are values too. It is normed, but for its last elements, which turn with the
 * position, as those of queries do. */
#include "base/status.h"
#include "graph/check.h"
#include "ops/heads.h"
#include "ops/keys.h"
#include "step/step.h"

#include <string.h>

static mmrt_status check_widths(const mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    const struct mmrt_state_layer *layer = mmrt_layer_of(program, op);
    if (!layer || layer->spec.kind != MMRT_STATE_PAGES || !layer->spec.v_in_keys ||
        layer->spec.n_heads != 1)
        return mmrt_fail(err, MMRT_ARGUMENT, "layer %d: it has no values within one head's keys",
                         op->layer);
    const uint64_t n = (uint64_t)op->n_heads, in = width_of(program, op->in);
    const uint64_t turned = layer->spec.k_dim - layer->spec.v_dim;
    if (op->rope < 0 || op->rope >= program->n_ropes ||
        2 * program->ropes[op->rope].n_pairs != turned)
        return mmrt_fail(err, MMRT_FORMAT,
                         "layer %d: %llu elements of a key turn, and its rotation has others",
                         op->layer, (unsigned long long)turned);
    if (op->n_heads < 1 || in % n || in / n < turned ||
        width_of(program, op->stream) != layer->spec.k_dim ||
        width_of(program, op->out) != (n + 1) * mmrt_head_room(layer))
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: widths differ", program->n_ops);
    return mmrt_check_vector(program, op->weights[0], layer->spec.v_dim, err);
}

static mmrt_status check(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    mmrt_status status = mmrt_check_read(program, op, op->in, false, err);
    if (!status)
        status = mmrt_check_read(program, op, op->stream, false, err);
    if (!status)
        status = mmrt_check_read(program, op, op->out, false, err);
    if (!status)
        status = mmrt_check_apart(program, op, err);
    if (!status)
        status = check_widths(program, op, err);
    if (status)
        return status;
    const bool quantised = mmrt_layer_of(program, op)->spec.k_type == MMRT_TYPE_Q8_0;
    mmrt_note_read(program, op->out, quantised);
    mmrt_note_write(program, op, op->out, false);
    program->buffers[op->out].heads_of = op->layer + 1;
    return MMRT_OK;
}

static void run(struct worker *w) {
    const struct step *step = w->step;
    const mmrt_op *op = w->op;
    const mmrt_program *program = step->program;
    const struct mmrt_state_layer *layer = mmrt_layer_of(program, op);
    const struct mmrt_columns *in = columns_at(step, op->in), *heads = columns_at(step, op->out);
    const struct mmrt_columns *rows = columns_at(step, op->stream);
    const struct rope *rope = &program->ropes[op->rope];
    const size_t latent = layer->spec.v_dim, turned = layer->spec.k_dim - latent;
    const size_t room = mmrt_head_room(layer), n_q = (size_t)op->n_heads, dim = in->k / n_q;
    const struct part *part = step->parts;
    const uint64_t n = step->n * (n_q + 1);
    const uint64_t end = mmrt_share_first(n, w->thread + 1, w->n_threads);
    for (uint64_t i = mmrt_share_first(n, w->thread, w->n_threads); i < end; i++) {
        const size_t token = i / (n_q + 1), head = i % (n_q + 1);
        const bool is_query = head < n_q;
        const float *from =
            is_query ? row_at(in, token) + (head + 1) * dim - turned : row_at(rows, token) + latent;
        float *x = row_at(heads, token) + head * room;
        if (!is_query) /* what queries have here came from a matrix */
            program->kernels->rms_norm(row_at(rows, token), weight_at(step, op->weights[0])->data,
                                       op->eps, x, latent);
        memcpy(x + latent, from, turned * sizeof *x);
        mmrt_rotate(x + latent, rope->table + token * rope->n_pairs * 2, rope->n_pairs,
                    op->interleaved);
        memset(x + layer->spec.k_dim, 0, (room - layer->spec.k_dim) * sizeof *x);
        if (layer->spec.k_type == MMRT_TYPE_Q8_0)
            program->kernels->quantize(heads, token, head * room, room);
        if (is_query)
            continue;
        part = part_from(part, token);
        const uint64_t position = position_of(part, token);
        uint8_t *page = mmrt_state_pages(part->state, layer->table)[position / MMRT_PAGE_KEYS];
        mmrt_store_key(layer->spec.k_type, page + mmrt_state_keys_at(layer, 0),
                       position % MMRT_PAGE_KEYS, heads, token, head * room, room);
    }
}

const struct op_info mmrt_op_latent = {
    .name = "latent",
    .roles = {VECTOR},
    .check = check,
    .run = run,
};
