/* Every call of the core that takes something from the system is failed once: allocations,
 * mappings, threads, files, io_uring. Arguments: a path for a file to be made, and a GGUF file.
 *
 * A scenario is run in a process of its own for each such call that it makes, and each way to go on
 * after the failure. Either the core does without, or the call returns a status with a message;
 * then the same object works when the call is made again, or can be freed. The results are right to
 * the bit, and nothing is left behind. */
#define _GNU_SOURCE
#include "mmrt.h"
#include "after_faults.h"
#include "base/pool.h"
#include "demand_faults.h"
#include "quant/quant.h"
#include "state/state.h"

#include <limits.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/wait.h>

/* ---- a small model: a file of its weights, one after another ---- */

enum { N_LAYERS = 2, WIDTH = 64, HEAD = 32, HEADS = 2, HIDDEN = 128, VOCABULARY = 160 };
enum { EMBEDDING, LAST_NORM, OUTPUT, LAYERS };
enum { NORM, Q, K, V, O, GLU_NORM, GATE, UP, DOWN, PER_LAYER };
enum { N_WEIGHTS = LAYERS + N_LAYERS * PER_LAYER, FILE_BYTES = 512 << 10 };

#define LAYER                                                                                      \
    {.kind = MMRT_STATE_PAGES,                                                                     \
     .n_heads = 1,                                                                                 \
     .k_dim = HEAD,                                                                                \
     .v_dim = HEAD,                                                                                \
     .k_type = MMRT_TYPE_F16,                                                                      \
     .v_type = MMRT_TYPE_Q8_0}
static const mmrt_layer_state LAYERS_OF_MODEL[N_LAYERS] = {LAYER, LAYER};

static const char *path, *gguf_path;
static _Alignas(64) uint8_t file_bytes[FILE_BYTES];
static mmrt_weight weights[N_WEIGHTS]; /* in file_bytes */

static float small_number(void) { /* -1/2 to 1/2 */
    static uint32_t state = 12345;
    state = state * 1664525 + 1013904223;
    return (float)(state >> 16) / 65536 - 0.5f;
}

static size_t add_weight(int index, uint32_t type, uint64_t rows, uint64_t cols, size_t at) {
    const struct mmrt_format *format = mmrt_format_find(type);
    weights[index] = (mmrt_weight){
        .data = file_bytes + at, .type = type, .rows = rows, .cols = cols, .name = "a weight"};
    float values[HIDDEN];
    for (uint64_t row = 0; row < rows; row++) {
        for (uint64_t i = 0; i < cols; i++)
            values[i] = small_number() + (rows == 1);
        const size_t bytes = cols / format->elements * format->bytes;
        if (format->pack)
            format->pack(values, file_bytes + at + row * bytes, cols);
        else
            memcpy(file_bytes + at + row * bytes, values, bytes);
    }
    at += rows * (cols / format->elements * format->bytes);
    CHECK(at <= FILE_BYTES);
    return (at + 63) / 64 * 64;
}

static void make_file(void) {
    size_t at = add_weight(EMBEDDING, MMRT_TYPE_F32, VOCABULARY, WIDTH, 0);
    at = add_weight(LAST_NORM, MMRT_TYPE_F32, 1, WIDTH, at);
    for (int layer = 0; layer < N_LAYERS; layer++) {
        const int first = LAYERS + layer * PER_LAYER;
        at = add_weight(first + NORM, MMRT_TYPE_F32, 1, WIDTH, at);
        at = add_weight(first + Q, MMRT_TYPE_Q8_0, HEADS * HEAD, WIDTH, at);
        at = add_weight(first + K, MMRT_TYPE_Q8_0, HEAD, WIDTH, at);
        at = add_weight(first + V, MMRT_TYPE_Q8_0, HEAD, WIDTH, at);
        at = add_weight(first + O, MMRT_TYPE_Q8_0, WIDTH, HEADS * HEAD, at);
        at = add_weight(first + GLU_NORM, MMRT_TYPE_F32, 1, WIDTH, at);
        at = add_weight(first + GATE, MMRT_TYPE_Q8_0, HIDDEN, WIDTH, at);
        at = add_weight(first + UP, MMRT_TYPE_F32, HIDDEN, WIDTH, at);
        at = add_weight(first + DOWN, MMRT_TYPE_Q8_0, WIDTH, HIDDEN, at);
    }
    at = add_weight(OUTPUT, MMRT_TYPE_F32, VOCABULARY, WIDTH, at);
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0600);
    fchmod(fd, 0600);
    CHECK(fd >= 0 && write(fd, file_bytes, at) == (ssize_t)at && fsync(fd) == 0);
    close(fd);
}

static mmrt_op op(mmrt_op_kind kind, int32_t in, int32_t out) {
    return (mmrt_op){.kind = kind,
                     .in = in,
                     .out = out,
                     .stream = -1,
                     .weights = {-1, -1, -1},
                     .biases = {-1, -1, -1},
                     .scales = {1, 1, 1},
                     .rope = -1,
                     .eps = 1e-5f,
                     .scale = 1};
}

/* The program of the model; on `data`, or where the weights lie. NULL: given up. */
static mmrt_program *make_program(const uint8_t *data, int n_threads, mmrt_state_store **store) {
    enum { STREAM, NORMED, HEADS_OF, ATTENDED, PART, GATED, N_BUFFERS };
    const uint32_t widths[N_BUFFERS] = {WIDTH,        WIDTH, (HEADS + 2) * HEAD,
                                        HEADS * HEAD, WIDTH, HIDDEN};
    const double frequencies[2] = {1, 0.25};
    mmrt_program *program = NULL;
    int32_t index;
    TRY(mmrt_state_store_create(LAYERS_OF_MODEL, N_LAYERS, store, &error));
    TRY(mmrt_program_create(MMRT_ISA_REF, 8, *store, false, &program, &error));
    for (int i = 0; i < N_WEIGHTS; i++) {
        mmrt_weight w = weights[i];
        if (data)
            w.data = data + ((const uint8_t *)w.data - file_bytes);
        TRY(mmrt_program_add_weight(program, &w, &index, &error));
        CHECK(index == i);
    }
    for (int i = 0; i < N_BUFFERS; i++) {
        TRY(mmrt_program_add_buffer(program, widths[i], 1, &index, &error));
        CHECK(index == i);
    }
    TRY(mmrt_program_add_rope(program, frequencies, 2, 1, &index, &error));
    CHECK(index == 0);

    mmrt_op embed = op(MMRT_OP_EMBED, -1, STREAM);
    embed.weights[0] = EMBEDDING;
    TRY(mmrt_program_add_op(program, &embed, &error));
    for (int layer = 0; layer < N_LAYERS; layer++) {
        const int first = LAYERS + layer * PER_LAYER;
        mmrt_op ops[] = {
            op(MMRT_OP_NORM, layer ? PART : -1, NORMED),
            op(MMRT_OP_LINEAR, NORMED, HEADS_OF),
            op(MMRT_OP_ROPE, HEADS_OF, HEADS_OF),
            op(MMRT_OP_ATTEND, HEADS_OF, ATTENDED),
            op(MMRT_OP_LINEAR, ATTENDED, PART),
            op(MMRT_OP_NORM, PART, NORMED),
            op(MMRT_OP_GLU, NORMED, GATED),
            op(MMRT_OP_LINEAR, GATED, PART),
        };
        ops[0].stream = ops[5].stream = STREAM;
        ops[0].weights[0] = first + NORM;
        for (int i = 0; i < 3; i++)
            ops[1].weights[i] = first + Q + i;
        ops[2].rope = 0;
        ops[2].layer = ops[3].layer = layer;
        ops[2].n_heads = ops[3].n_heads = HEADS;
        ops[4].weights[0] = first + O;
        ops[5].weights[0] = first + GLU_NORM;
        ops[6].weights[0] = first + GATE;
        ops[6].weights[1] = first + UP;
        ops[7].weights[0] = first + DOWN;
        for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
            TRY(mmrt_program_add_op(program, &ops[i], &error));
    }
    mmrt_op norm = op(MMRT_OP_NORM, PART, NORMED), logits = op(MMRT_OP_LOGITS, NORMED, -1);
    logits.outputs_only = true;
    norm.stream = STREAM;
    norm.weights[0] = LAST_NORM;
    logits.weights[0] = OUTPUT;
    TRY(mmrt_program_add_op(program, &norm, &error));
    TRY(mmrt_program_add_op(program, &logits, &error));
    TRY(mmrt_program_finish(program, n_threads, &error));
    return program;
end:
    mmrt_program_free(program);
    return NULL;
}

/* ---- steps, whose right answers a run in the parent has noted ---- */

enum { STEP = 4, STEPS = 3, FAR = 300 };
static float right[STEPS][2 * STEP][VOCABULARY];
static bool right_is_known;

/* One step of two texts. False: given up. */
static bool run_step(mmrt_program *program, mmrt_pool *pool, mmrt_state *const *states,
                     int number) {
    static float logits[2 * STEP][VOCABULARY];
    const int32_t tokens[2 * STEP] = {3, 14, 15, 92, 65, 35, 89, number};
    const mmrt_part parts[2] = {{states[0], STEP, STEP, false}, {states[1], STEP, STEP, false}};
    memset(logits, 0, sizeof logits);
    TRY(mmrt_program_run(program, pool, parts, 2, tokens, NULL, logits[0], NULL, 0, NULL, NULL,
                         NULL, &error));
    for (int i = 0; i < 2; i++)
        CHECK(mmrt_state_length(states[i]) == (uint64_t)(number + 1) * STEP);
    if (right_is_known)
        CHECK(!memcmp(logits, right[number], sizeof logits));
    else
        memcpy(right[number], logits, sizeof logits);
    return true;
end:
    for (int i = 0; i < 2; i++)
        CHECK(mmrt_state_length(states[i]) == (uint64_t)number * STEP);
    return false;
}

static void steps_in_memory(void) {
    mmrt_pool *pool = NULL;
    mmrt_state_store *store = NULL;
    mmrt_state *states[2] = {NULL, NULL};
    mmrt_program *program = make_program(NULL, 2, &store);
    if (!program)
        goto end;
    TRY(mmrt_pool_create(2, &pool, &error));
    for (int i = 0; i < 2; i++)
        TRY(mmrt_state_create(store, &states[i], &error));
    for (int i = 0; i < STEPS; i++)
        if (!run_step(program, pool, states, i))
            goto end;
    TRY(mmrt_state_reserve(states[0], FAR,
                           &error)); /* grows its table, and takes several extents */
    CHECK(mmrt_state_length(states[0]) == STEPS * STEP && mmrt_state_bytes(states[0]));
end:
    mmrt_program_free(program);
    mmrt_pool_free(pool);
    for (int i = 0; i < 2; i++)
        mmrt_state_free(states[i]);
    mmrt_state_store_free(store);
}

/* ---- streamed steps ---- */

static mmrt_reader reader;

static void streamed_steps(void) {
    mmrt_mapping *mapping = NULL;
    mmrt_pool *pool = NULL;
    mmrt_program *program = NULL;
    mmrt_state_store *store = NULL;
    mmrt_state *states[2] = {NULL, NULL};
    mmrt_plan plan;
    uint64_t kept[N_WEIGHTS];
    TRY(mmrt_mapping_open(path, &mapping, &error));
    program = make_program(mmrt_mapping_data(mapping), 2, &store);
    if (!program)
        goto end;
    TRY(mmrt_program_stream(program, &mapping, 1, &error));
    TRY(mmrt_program_set_reader(program, reader, &error));
    CHECK(mmrt_program_plan(program, 0, &plan, NULL, NULL) == MMRT_NO_MEMORY);
    TRY(mmrt_program_set_budget(program, plan.least, &error));
    TRY(mmrt_pool_create(2, &pool, &error));
    for (int i = 0; i < 2; i++)
        TRY(mmrt_state_create(store, &states[i], &error));
    if (!run_step(program, pool, states, 0))
        goto end;
    TRY(mmrt_program_plan(program, plan.most - 1, &plan, kept, &error)); /* keeps some, not all */
    TRY(mmrt_program_set_budget(program, plan.most - 1, &error));
    if (!run_step(program, pool, states, 1))
        goto end;
    TRY(mmrt_program_set_reader(program, MMRT_READER_MAPPED, &error));
    TRY(mmrt_program_set_reader(program, reader, &error));
    if (!run_step(program, pool, states, 2))
        goto end;
end:
    mmrt_program_free(program);
    mmrt_pool_free(pool);
    for (int i = 0; i < 2; i++)
        mmrt_state_free(states[i]);
    mmrt_state_store_free(store);
    mmrt_mapping_close(mapping);
}

static void units_on_demand(void) {
    demand_passes(path, file_bytes, reader);
}

static void measured_disk(void) {
    mmrt_mapping *mapping = NULL;
    double speed = 0;
    TRY(mmrt_mapping_open(path, &mapping, &error));
    TRY(mmrt_reader_check(reader, mapping, &error));
    TRY(mmrt_reader_probe(reader, mapping, 100, 100000, &speed, &error));
    CHECK(speed > 0);
end:
    mmrt_mapping_close(mapping);
}

/* ---- mappings ---- */

static void mappings(void) {
    mmrt_mapping *file = NULL, *copy = NULL, *memory = NULL;
    unsigned char pages[FILE_BYTES / 4096 + 1];
    bool trusted;
    TRY(mmrt_mapping_open(path, &file, &error));
    TRY(mmrt_mapping_create(
        &(mmrt_map_request){.path = "again", .fd = mmrt_mapping_fd(file), .length = 10000}, &copy,
        &error));
    TRY(mmrt_mapping_create(&(mmrt_map_request){.fd = -1, .length = 10000, .writable = true},
                            &memory, &error));
    memset(mmrt_mapping_data(memory), 1, 10000);
    CHECK(!memcmp(mmrt_mapping_data(file), file_bytes, mmrt_mapping_size(file)));
    CHECK(!memcmp(mmrt_mapping_data(copy), file_bytes, 10000));
    TRY(mmrt_mapping_residency(file, 0, mmrt_mapping_size(file), pages, &trusted, &error));
    TRY(mmrt_mapping_mapped(file, 0, mmrt_mapping_size(file), pages, &error));
    CHECK(pages[0] == 1);
    TRY(mmrt_mapping_check(file, 0, mmrt_mapping_size(file), NULL, &error));
end:
    mmrt_mapping_close(memory);
    mmrt_mapping_close(copy);
    mmrt_mapping_close(file);
}

static void a_directory_of_tensors(void) {
    mmrt_mapping *mapping = NULL;
    mmrt_gguf *gguf = NULL;
    TRY(mmrt_mapping_open(gguf_path, &mapping, &error));
    TRY(mmrt_gguf_parse(mmrt_mapping_data(mapping), mmrt_mapping_size(mapping), "a file", NULL,
                        NULL, &gguf, &error));
    CHECK(mmrt_gguf_n_tensors(gguf) > 0 && mmrt_gguf_n_entries(gguf) > 0);
end:
    mmrt_gguf_free(gguf);
    mmrt_mapping_close(mapping);
}

/* ---- threads and memory nodes ---- */

static void mark_thread(void *context, int thread, int n_threads) {
    (void)n_threads;
    ((int *)context)[thread]++;
}

/* A child has to start threads of its own. */
static void in_a_child(mmrt_pool *pool) {
    int seen[3] = {0}, status = 1;
    const pid_t child = fork();
    if (child == 0) {
        TRY(mmrt_pool_run(pool, mark_thread, seen, &error));
        CHECK(seen[0] == 1 && seen[1] == 1 && seen[2] == 1);
    end:
        mmrt_pool_free(pool);
        _exit(check_failures != 0);
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
}

static void threads(void) {
    mmrt_pool *pool = NULL;
    int seen[3] = {0}, nodes[3];
    const mmrt_set mine = mmrt_cpu_affinity(), sets[3] = {mine, mine, mine};
    TRY(mmrt_pool_create(3, &pool, &error));
    TRY(mmrt_pool_run(pool, mark_thread, seen, &error));
    TRY(mmrt_pool_bind(pool, sets, &error));
    TRY(mmrt_numa_bind_pool(pool, nodes, &error));
    TRY(mmrt_pool_run(pool, mark_thread, seen, &error));
    CHECK(seen[0] == 2 && seen[1] == 2 && seen[2] == 2);
    in_a_child(pool);
end:
    mmrt_pool_free(pool);
}

static mmrt_numa_topology right_topology, topology;

/* The memory that is free varies. */
static void without_free(mmrt_numa_topology *t) {
    for (int i = 0; i < t->n_nodes; i++)
        t->nodes[i].free = 0;
}

static void memory_nodes(void) {
    mmrt_mapping *mapping = NULL;
    TRY(mmrt_numa_topology_read(NULL, &topology, &error));
    without_free(&topology);
    CHECK(!memcmp(&topology, &right_topology, sizeof topology));
    int node = 0;
    while (!mmrt_set_has(&right_topology.allowed, node))
        node++;
    mmrt_numa_range ranges[] = {{.offset = 1, .length = 50000, .node = node},
                                {.offset = 60000, .length = 100, .node = node}};
    TRY(mmrt_mapping_open(path, &mapping, &error));
    TRY(mmrt_numa_place(mapping, ranges, 2, NULL, NULL, &error));
    CHECK(ranges[0].n_pages == mmrt_mapping_pages(mapping, 1, 50000));
end:
    mmrt_mapping_close(mapping);
}

/* ---- matrices ---- */

static void matrices(void) {
    static float x[3 * WIDTH], y[3 * HIDDEN];
    static uint8_t blocks[HIDDEN * WIDTH / 32 * 34], right_blocks[sizeof blocks];
    const mmrt_weight *up = &weights[LAYERS + UP];
    mmrt_pool *pool = NULL;
    for (int i = 0; i < 3 * WIDTH; i++)
        x[i] = i % WIDTH == 5; /* picks a column */
    mmrt_pack_Q8_0(up->data, right_blocks, HIDDEN * WIDTH);
    TRY(mmrt_pool_create(2, &pool, &error));
    TRY(mmrt_matmul(pool, MMRT_ISA_REF, up, x, 3, y, &error));
    for (int i = 0; i < 3 * HIDDEN; i++)
        CHECK(y[i] == ((const float *)up->data)[i % HIDDEN * WIDTH + 5]);
    TRY(mmrt_quantize(pool, up, 0, HIDDEN, MMRT_TYPE_Q8_0, blocks, &error));
    CHECK(!memcmp(blocks, right_blocks, sizeof blocks));
    uint64_t done;
    TRY(mmrt_roof(pool, MMRT_ISA_REF, MMRT_ROOF_READ, file_bytes, 10000, &done, &error));
    TRY(mmrt_roof(pool, MMRT_ISA_REF, MMRT_ROOF_INT8, NULL, 10000, &done, &error));
end:
    mmrt_pool_free(pool);
}

/* ---- drawing tokens ---- */

static void draws(void) {
    enum { N = 5000 };
    static float logits[N], probabilities[N];
    static int32_t tokens[N];
    const int32_t recent[] = {1, 2, 3, 2};
    mmrt_alternative likeliest[3];
    mmrt_pool *pool = NULL;
    size_t n;
    for (int i = 0; i < N; i++)
        logits[i] = (float)(i * 37 % 100);
    mmrt_draw draw = {
        .sampling = {0.7f, .top_k = 4000, .top_p = 0.99f, .repeat_penalty = 1.1f},
        .logits = logits,
        .recent = recent,
        .n_recent = 4,
        .uniform = 0.5,
        .wants_logprob = true,
        .alternatives = likeliest,
    };
    mmrt_draw both[2] = {draw, draw};
    both[1].sampling.temperature = 0;
    both[0].n_alternatives = both[1].n_alternatives = 3;
    TRY(mmrt_pool_create(2, &pool, &error));
    TRY(mmrt_sample(pool, MMRT_ISA_REF, both, 2, N, &error));
    CHECK(logits[both[0].token] > 90 && both[1].token == 27 && likeliest[0].token == 27);
    TRY(mmrt_distribution(MMRT_ISA_REF, &draw, N, tokens, probabilities, &n, &error));
    CHECK(n > 0 && n < 4000 && logits[tokens[0]] > 90);
end:
    mmrt_pool_free(pool);
}

/* ---- sequences that share pages ---- */

static const mmrt_layer_state LAYERS_KEEP[] = {
    {MMRT_STATE_PAGES, 1, 32, 32, false, MMRT_TYPE_F16, MMRT_TYPE_F16, 0, 0, 0},
    {.kind = MMRT_STATE_BLOCK, .block_bytes = 100},
    {MMRT_STATE_PAGES, 1, 64, 32, false, MMRT_TYPE_Q8_0, MMRT_TYPE_F16, 0, 0, 0},
};

/* Tokens `first` to `end` - 1 are written, each with its number, at the start of its page. False:
 * given up. */
static bool extend(mmrt_state *state, uint64_t end, uint8_t number) {
    const uint64_t first = mmrt_state_length(state), bytes = mmrt_state_bytes(state);
    TRY(mmrt_state_reserve(state, end, &error));
    for (uint64_t i = first; i < end; i++)
        mmrt_state_pages(state, 0)[i / 32][i % 32] = number;
    memset(mmrt_state_next_block(state), number, 100);
    mmrt_state_commit(state, end);
    return true;
end:
    CHECK(mmrt_state_length(state) == first && mmrt_state_bytes(state) == bytes);
    return false;
}

static void forked_sequences(void) {
    mmrt_state_store *store = NULL;
    mmrt_state *state = NULL, *fork = NULL, *third = NULL;
    TRY(mmrt_state_store_create(LAYERS_KEEP, 3, &store, &error));
    TRY(mmrt_state_create(store, &state, &error));
    if (!extend(state, 40, 1))
        goto end;
    TRY(mmrt_state_fork(state, &fork, &error));
    if (!extend(fork, 300, 2) || !extend(state, 41, 3))
        goto end;
    TRY(mmrt_state_fork(fork, &third, &error));
    if (!extend(third, 301, 4))
        goto end;
    CHECK(mmrt_state_pages(fork, 0)[1][7] == 1 && mmrt_state_pages(fork, 0)[1][8] == 2);
    CHECK(mmrt_state_pages(state, 0)[1][8] == 3 && mmrt_state_block(state)[99] == 3);
    CHECK(mmrt_state_pages(third, 0)[9][12] == 4 && mmrt_state_block(fork)[0] == 2);
end:
    if (store && state)
        CHECK(mmrt_state_bytes(state) <= mmrt_state_store_bytes(store));
    mmrt_state_free(state);
    mmrt_state_free(fork);
    mmrt_state_free(third);
    CHECK(!store || mmrt_state_store_bytes(store) == 0);
    mmrt_state_store_free(store);
}

/* ---- all calls of a scenario ---- */

struct outcome {
    long calls, blocks;
    int failures;
};

/* The scenario in a process of its own, with calls from number `first` to `last` failing. `blocks`
 * is what may be left: entries in the list of guarded mappings, which only grows. */
static struct outcome run_child(void (*scenario)(void), long first, long last, long blocks) {
    struct outcome outcome = {.failures = 1};
    int ends[2], status;
    CHECK(pipe(ends) == 0);
    const pid_t child = fork();
    if (child == 0) {
        alarm(20);
        check_failures = 0;
        const int files = open_files();
        faults.blocks = faults.mapped = faults.threads = 0;
        arm(first, last);
        scenario();
        disarm();
        CHECK(faults.mapped == 0 && faults.threads == 0 && open_files() == files);
        CHECK(faults.blocks >= 0 && faults.blocks <= blocks);
        if (mode == GO_ON)
            CHECK(blocks == LONG_MAX || faults.blocks == blocks);
        outcome = (struct outcome){faults.calls, faults.blocks, check_failures};
        if (check_failures)
            fprintf(stderr, "... when %s fails, %ld of them left blocks %ld of %ld\n",
                    faults.name ? faults.name : "nothing", faults.calls, faults.blocks, blocks);
        _exit(write(ends[1], &outcome, sizeof outcome) != sizeof outcome);
    }
    close(ends[1]);
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    if (status != 0 || read(ends[0], &outcome, sizeof outcome) != sizeof outcome)
        outcome.failures++;
    close(ends[0]);
    return outcome;
}

static void fail_each(const char *name, void (*scenario)(void)) {
    mode = GO_ON;
    const struct outcome whole = run_child(scenario, 1, 0, LONG_MAX);
    CHECK(whole.failures == 0 && whole.calls > 0);
    for (mode = 0; mode < MODES && !whole.failures; mode++)
        for (long i = 1; i <= whole.calls; i++) {
            const long last = mode == EXHAUSTED ? LONG_MAX : i;
            if (run_child(scenario, i, last, whole.blocks).failures) {
                fprintf(stderr, "%s, call %ld of %ld, %s\n", name, i, whole.calls,
                        mode_names[mode]);
                check_failures++;
            }
        }
    printf("%s: %ld calls\n", name, whole.calls);
    fflush(stdout);
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: %s FILE_TO_MAKE GGUF_FILE\n", argv[0]);
        return 2;
    }
    path = argv[1];
    gguf_path = argv[2];
    make_file();
    steps_in_memory();
    right_is_known = true;
    CHECK(mmrt_numa_topology_read(NULL, &right_topology, &error) == MMRT_OK);
    without_free(&right_topology);

    fail_each("mappings", mappings);
    fail_each("a directory of tensors", a_directory_of_tensors);
    fail_each("threads", threads);
    fail_each("memory nodes", memory_nodes);
    fail_each("matrices", matrices);
    fail_each("draws", draws);
    fail_each("forked sequences", forked_sequences);
    fail_each("steps in memory", steps_in_memory);
    mmrt_mapping *mapping = NULL;
    CHECK(mmrt_mapping_open(path, &mapping, &error) == MMRT_OK);
    for (reader = 0; reader < MMRT_READER_COUNT; reader++) {
        char name[64];
        if (mmrt_reader_check(reader, mapping, &error) != MMRT_OK) { /* not everywhere */
            printf("%s: %s\n", mmrt_reader_name(reader), error.message);
            continue;
        }
        snprintf(name, sizeof name, "steps streamed by %s", mmrt_reader_name(reader));
        fail_each(name, streamed_steps);
        snprintf(name, sizeof name, "units on demand by %s", mmrt_reader_name(reader));
        fail_each(name, units_on_demand);
        snprintf(name, sizeof name, "the disk measured by %s", mmrt_reader_name(reader));
        fail_each(name, measured_disk);
    }
    mmrt_mapping_close(mapping);
    return check_result();
}
