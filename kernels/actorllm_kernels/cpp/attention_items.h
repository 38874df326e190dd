// What attention computes, and the items it is cut into: some consecutive queries of one row with one key/value head and all query
// heads that share it.
//
// Legend: M score rows of an item (queries x heads of the group), D head_dim of keys, E head_dim of values.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "attention_products.h"

namespace {

constexpr float MINUS_INF = -INFINITY;

struct Span {
    int32_t row, start, query_len, seq_len;
};

struct Item {
    int span, kv_head;
    int first_token;       // of the item's queries, in the flat batch
    int first_query;       // its position in the sequence
    int num_queries;
    int key_begin, key_end;
    bool has_sink;         // the first part of a row's keys counts the sink
    float* partial;        // [M, E + 2] where the parts are merged later: sums, maximum, normalizer
};

template <class T>
struct Problem {
    const float* q;
    int64_t q_token_stride, q_head_stride;
    Pool<T> k, v;
    const int32_t* table;
    int64_t table_stride;
    const Span* spans;
    int num_spans, num_heads, num_kv_heads, D, E;
    float scale, soft_cap;
    const float *sinks, *slopes;
    int window;
    float* out;
    int group() const { return num_heads / num_kv_heads; }
    int head(const Item& item, int m) const { return item.kv_head * group() + m % group(); }
    const float* query(const Item& item, int m) const {
        return q + (item.first_token + m / group()) * q_token_stride + head(item, m) * q_head_stride;
    }
    float* result(const Item& item, int m) const { return out + (int64_t(item.first_token + m / group()) * num_heads + head(item, m)) * E; }
};

inline int round_up(int x, int unit) { return (x + unit - 1) / unit * unit; }

// The factors of some tokens, and zeros behind them; none if all are 1, or keys have two of them, which are applied to each.
// Stays apart from its callers, whose loops compilers make slower with it inside.
template <class T>
__attribute__((noinline)) void gather_factors(const Pool<T>& pool, int head, const int32_t* slots, int num_keys, std::vector<float>& to) {
    if (!pool.factors || pool.parts > 1) return to.clear();
    to.resize(round_up(num_keys, 2 * VL));
    for (int j = 0; j < num_keys; j++) to[j] = *pool.factors_at(slots[j], head);
    std::fill(to.begin() + num_keys, to.end(), 0.0f);
}

// Each span is cut into items of at most max_rows(span) score rows, whatever other spans there are.
template <class T, class MaxRows>
std::vector<Item> items_of(const Problem<T>& p, MaxRows max_rows) {
    std::vector<Item> items;
    for (int b = 0; b < p.num_spans; b++) {
        const Span& span = p.spans[b];
        const int block = std::max(1, max_rows(span) / p.group());
        for (int begin = 0; begin < span.query_len; begin += block) {
            const int n = std::min(block, span.query_len - begin), first = span.seq_len - span.query_len + begin;
            const int key_begin = p.window ? std::max(0, first - p.window + 1) : 0;
            for (int head = 0; head < p.num_kv_heads; head++)
                items.push_back({b, head, span.start + begin, first, n, key_begin, first + n, true, nullptr});
        }
    }
    return items;
}

}  // namespace
