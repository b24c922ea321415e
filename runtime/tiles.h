/*
 * Pictures in tiles, as LLaVA-NeXT takes them ("anyres"): which grid, where the picture lies on it, and which part of
 * the tiles' feature maps shows it.
 * SPDX-License-Identifier: MIT
 *
 * All of it is LLaVA's mm_utils.py and llava_arch.py, in the doubles that Python computes with: another rounding is
 * another grid, or a row of tokens more.
 */
#ifndef SQ_TILES_H
#define SQ_TILES_H

#include "runtime/image.h"

typedef struct sq_size {
    uint32_t w, h;
} sq_size;

/* A picture on a canvas of tiles: resized to `fit`, its upper left corner at x, y; the rest is black. */
typedef struct sq_tiles {
    uint32_t columns, rows;
    sq_size fit;
    uint32_t x, y;
} sq_tiles;

/* Of a map over all the tiles, what the picture covers. A picture much longer than wide may be left with nothing. */
typedef struct sq_kept_map {
    uint32_t x, y, columns, rows;
} sq_kept_map;

/** Of n canvases, at least one, that which shows the most of a w x h picture; of those the one that wastes least. */
size_t sq_tiles_choose(const sq_size *canvases, size_t n, uint32_t w, uint32_t h);

/** Lays a w x h picture on a canvas whose sides are multiples of tile_side. */
sq_tiles sq_tiles_lay(sq_size canvas, uint32_t tile_side, uint32_t w, uint32_t h);

/** Of a feature map of columns x rows over the canvas, what is left without its padding. */
sq_kept_map sq_tiles_unpad(uint32_t columns, uint32_t rows, uint32_t w, uint32_t h);

/** Size of a map that is to have no more than some `most` cells: it stays if it is about 2 % too large. 0: any. */
sq_size sq_tiles_shrink(uint32_t columns, uint32_t rows, double most);

/** The most high-resolution tokens, ends of rows among them, that a picture on one of n canvases can have: sides in
 *  tiles, each of unit x unit cells. @param most  cells, or 0: maps are not shrunk */
uint32_t sq_tiles_most_tokens(const sq_size *canvases, size_t n, uint32_t unit, double most);

/**
 * The whole picture, stretched to a tile, then the tiles row by row, normalised as by sq_image_prepare().
 * @param rule  of a tile; its fit counts for nothing
 * @param out   [1 + rows * columns][3][size][size]
 */
squint_err sq_tiles_prepare(const uint8_t *rgb, uint32_t w, uint32_t h, size_t stride, const sq_image_rule *rule,
                            const sq_tiles *tiles, float *out, const squint_allocator *a, squint_msg *msg);

#endif
