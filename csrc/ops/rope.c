/* Norms and rotations of queries and keys; keys and values go to their pages. A layer that reads
 * another's has queries alone. Where there are no values, keys as they come are the values. */
#include "base/status.h"
#include "graph/check.h"
#include "ops/heads.h"
#include "ops/keys.h"
#include "state/page.h"
#include "step/step.h"

#include <math.h>
#include <string.h>

static mmrt_status check_parameters(const mmrt_program *program, const mmrt_op *op,
                                    mmrt_error *err) {
    const uint32_t dim = mmrt_layer_of(program, op)->spec.k_dim;
    for (int i = 0; i < 2; i++)
        if (op->weights[i] >= 0) {
            mmrt_status status = mmrt_check_vector(program, op->weights[i], dim, err);
            if (status)
                return status;
        }
    if (op->rope >= program->n_ropes ||
        (op->rope >= 0 && 2 * program->ropes[op->rope].n_pairs > dim))
        return mmrt_fail(err, MMRT_FORMAT,
                         "layer %d: more dimensions rotated than the %u of a head", op->layer, dim);
    if (op->temperature != 0 && op->period < 1)
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: a temperature without a period",
                         program->n_ops);
    return MMRT_OK;
}

/* The heads of `in`: queries, keys, and values unless keys are these. */
static uint64_t heads_read(const mmrt_program *program, const mmrt_op *op) {
    const struct mmrt_state_layer *layer = mmrt_layer_of(program, op);
    const uint64_t n_q = (uint64_t)op->n_heads, n_own = mmrt_own_heads(layer);
    const bool lacks_values = width_of(program, op->in) == (n_q + n_own) * layer->spec.k_dim;
    return n_q + (lacks_values ? 1 : 2) * n_own;
}

/* Keys are those of all tokens; those of another layer are there before they are read. */
static mmrt_status check_order(const mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    const struct mmrt_state_layer *layer = mmrt_layer_of(program, op);
    if (mmrt_own_heads(layer))
        return op->outputs_only ? mmrt_fail(err, MMRT_ARGUMENT,
                                            "operation %d: keys of outputs only", program->n_ops)
                                : MMRT_OK;
    for (int32_t i = 0; i < program->n_ops; i++)
        if (program->ops[i].kind == op->kind && program->ops[i].layer == (int32_t)layer->spec.layer)
            return MMRT_OK;
    return mmrt_fail(err, MMRT_ARGUMENT,
                     "layer %d: reads the keys of layer %u, which no operation before it stores",
                     op->layer, layer->spec.layer);
}

static mmrt_status check(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    mmrt_status status = mmrt_check_layer(program, op, err);
    if (!status)
        status = mmrt_check_buffer(program, op->in, err);
    if (!status)
        status = mmrt_check_buffer(program, op->out, err);
    if (status)
        return status;
    const struct mmrt_state_layer *layer = mmrt_layer_of(program, op);
    const mmrt_layer_state *spec = &layer->spec;
    status = mmrt_check_heads(program, op, spec->k_dim, heads_read(program, op),
                              (uint64_t)op->n_heads + 2 * mmrt_own_heads(layer), err);
    if (!status)
        status = check_parameters(program, op, err);
    if (!status)
        status = check_order(program, op, err);
    if (!status)
        status = mmrt_check_read(program, op, op->in, false, err);
    if (status)
        return status;
    mmrt_note_read(program, op->out,
                   spec->k_type == MMRT_TYPE_Q8_0 || spec->v_type == MMRT_TYPE_Q8_0);
    mmrt_note_write(program, op, op->out, false);
    program->buffers[op->out].heads_of = op->layer + 1;
    return MMRT_OK;
}

/* Scores keep their spread over many keys if queries grow with their position (Nakanishi 2025,
 * arXiv:2501.19399, in steps). */
static void grow(float *query, size_t n, const mmrt_op *op, uint64_t position) {
    const float growth = 1 + op->temperature * logf((float)(1 + position / (uint64_t)op->period));
    for (size_t i = 0; i < n; i++)
        query[i] *= growth;
}

static void run(struct worker *w) {
    const struct step *step = w->step;
    const mmrt_op *op = w->op;
    const mmrt_program *program = step->program;
    const struct mmrt_state_layer *layer = mmrt_layer_of(program, op);
    const struct mmrt_columns *in = columns_at(step, op->in), *heads = columns_at(step, op->out);
    const struct rope *rope = op->rope >= 0 ? &program->ropes[op->rope] : NULL;
    const size_t dim = layer->spec.k_dim, room = mmrt_head_room(layer);
    const size_t n_q = (size_t)op->n_heads, n_kv = mmrt_own_heads(layer), n_heads = n_q + 2 * n_kv;
    const size_t missing = n_heads - heads_read(program, op), first = first_token(w);
    const uint64_t n = (step->n - first) * n_heads;
    const uint64_t end = n * (uint64_t)(w->thread + 1) / (uint64_t)w->n_threads;
    const struct part *part = step->parts;
    for (uint64_t i = n * (uint64_t)w->thread / (uint64_t)w->n_threads; i < end; i++) {
        const size_t token = first + i / n_heads, head = i % n_heads;
        const bool is_query = head < n_q, is_value = head >= n_q + n_kv;
        float *x = row_at(heads, token) + head * room;
        const size_t from = is_value ? head - missing : head;
        if (heads != in)
            memcpy(x, row_at(in, token) + from * dim, dim * sizeof *x);
        const int32_t norm = is_value ? -1 : op->weights[is_query ? 0 : 1];
        if (norm >= 0 || (is_value && op->normed_values))
            program->kernels->rms_norm(x, norm < 0 ? NULL : weight_at(step, norm)->data, op->eps, x,
                                       dim);
        if (!is_value && rope)
            mmrt_rotate(x, rope->table + token * rope->n_pairs * 2, rope->n_pairs, op->interleaved);
        part = part_from(part, token);
        const uint64_t position = position_of(part, token);
        if (is_query && op->temperature != 0)
            grow(x, dim, op, position);
        const uint32_t type = is_value ? layer->spec.v_type : layer->spec.k_type;
        if (type == MMRT_TYPE_Q8_0) /* queries as keys */
            program->kernels->quantize(heads, token, head * room, room);
        if (is_query)
            continue;
        const size_t slot = position % MMRT_PAGE_KEYS;
        uint8_t *page = mmrt_state_pages(part->state, layer->table)[position / MMRT_PAGE_KEYS];
        const uint32_t among = (uint32_t)(is_value ? head - n_q - n_kv : head - n_q);
        if (is_value)
            mmrt_store_value(type, page + mmrt_state_values_at(layer, among), slot, heads, token,
                             head * room, room);
        else
            mmrt_store_key(type, page + mmrt_state_keys_at(layer, among), slot, heads, token,
                           head * room, room);
    }
}

const struct op_info mmrt_op_rope = {
    .name = "rope",
    .roles = {VECTOR, VECTOR},
    .check = check,
    .run = run,
};
