/* Work on a block in parts, by threads that wait for it. */
#ifndef THREADS_H
#define THREADS_H

#include <fenv.h>
#include <pthread.h>
#include <stdatomic.h>

#include "block.h"

enum { FEWEST = 128, SPINS = 100000 }; /* pixels that are worth a thread; looks for work before a helper sleeps */

typedef struct Task Task; /* what the work is done on */
typedef void Work(const Task *task, int part, int first, int last);

/* Functions of type Work are compiled twice on x86-64, the second time for processors with AVX; what they compute is the
 * same. Not for AVX2: compilers would gather from tables with it, which is slower on many processors. */
#ifdef __x86_64__
#define COMPILED_TWICE(name) \
    static void name##_plain(const Task *task, int part, int first, int last) { \
        name(task, part, first, last); \
    } \
    __attribute__((target("avx"))) static void name##_wide(const Task *task, int part, int first, int last) { \
        name(task, part, first, last); \
    }
#define CHOSEN(name) (wide ? name##_wide : name##_plain)
static int wide = 0; /* whether this processor has AVX, and the caller wants it used */
#else
#define COMPILED_TWICE(name)
#define CHOSEN(name) name
#endif

/* One caller at a time has the helpers. They wait a little while awake, as the next work is often near, then asleep. */
static struct {
    pthread_mutex_t taken, lock;
    pthread_cond_t wake;
    atomic_int turn, left;
    int helpers, parts, count;
    int hired_at[MAX_THREADS]; /* of helpers: the turn that was over when they came */
    Work *work;
    const Task *task;
} pool = {.taken = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static void do_part(int part) {
    int64_t count = pool.count;
    pool.work(pool.task, part, (int)(count * part / pool.parts), (int)(count * (part + 1) / pool.parts));
}

static void *helper(void *number) {
    int part = (int)(intptr_t)number, turn = pool.hired_at[part];
    fesetenv(FE_DFL_ENV);
    for (;;) {
        int spins = 0;
        while (atomic_load_explicit(&pool.turn, memory_order_acquire) == turn && spins < SPINS) spins++;
        if (spins == SPINS) {
            pthread_mutex_lock(&pool.lock);
            while (atomic_load(&pool.turn) == turn) pthread_cond_wait(&pool.wake, &pool.lock);
            pthread_mutex_unlock(&pool.lock);
        }
        turn = atomic_load(&pool.turn);
        if (part < pool.parts) do_part(part);
        atomic_fetch_sub(&pool.left, 1);
    }
    return NULL;
}

/* Threads do not survive a fork, and a lock may have been held by one of them. */
static void begin_in_a_child(void) {
    pthread_mutex_init(&pool.taken, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pool.helpers = 0;
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, begin_in_a_child); }

/* So many helpers, or as many as there can be. */
static void hire(int helpers) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    while (pool.helpers < helpers) {
        int part = pool.helpers + 1;
        pthread_t thread;
        pool.hired_at[part] = atomic_load(&pool.turn);
        if (pthread_create(&thread, &detached, helper, (void *)(intptr_t)part)) break;
        pool.helpers++;
    }
    pthread_attr_destroy(&detached);
}

/* Returns in how many parts the work was done: in one if there is little to do, or another caller has the helpers. */
static int in_parts(const Task *task, int count, int threads, Work *work) {
    if (threads > count / FEWEST) threads = count / FEWEST;
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    if (threads < 2 || pthread_mutex_trylock(&pool.taken)) {
        work(task, 0, 0, count);
        return 1;
    }
    hire(threads - 1);
    int parts = threads < pool.helpers + 1 ? threads : pool.helpers + 1;
    pool.work = work, pool.task = task, pool.count = count, pool.parts = parts;
    atomic_store(&pool.left, pool.helpers);
    pthread_mutex_lock(&pool.lock);
    atomic_fetch_add(&pool.turn, 1);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
    do_part(0);
    while (atomic_load_explicit(&pool.left, memory_order_acquire)) {}
    pthread_mutex_unlock(&pool.taken);
    return parts;
}

/* The floating-point environment that every process begins with, whatever others have made of it: libraries that were
 * built with fast mathematics let small numbers become zero in the whole process. Returns what it was. */
static fenv_t plain_arithmetic(void) {
    fenv_t others;
    fegetenv(&others);
    fesetenv(FE_DFL_ENV);
    return others;
}

#endif
