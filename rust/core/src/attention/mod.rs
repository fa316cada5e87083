//! Attention over a key-value cache: what generation spends most of its time on.
//!
//! # Design
//!
//! A query goes over exactly the tokens that its row holds, in an order that its own position fixes: no
//! padding, the same bits whoever shares the call, and the same whether a token is fed alone (decoding) or
//! with others of its row (prefill). Softmax is computed as it goes, a block of tokens at a time (Milakov and
//! Gimelshein, 2018), so that keys and values stream through the first cache once. Queries of one row and
//! key head go four abreast: what was read serves them all, and their sums do not wait for each other. Where
//! there is one alone, what bounds it is memory: its next block is fetched while it is at work. Other threads
//! take tokens of their own.
//!
//! Values lie as [tokens, head_dim]. Keys lie in tiles of [`TILE`] tokens, each [head_dim, TILE], so that
//! scores of neighbouring tokens are neighbours in a vector and no sum across one is needed: half the time
//! of keys that lie as the values do.

mod abreast;
mod kernel;
mod share;
mod softmax;

use crate::{Error, Result};

/// Tokens of a tile of keys. A cache's capacity is a multiple of it.
pub const TILE: usize = 16;

/// How many heads there are, of which size, and how many tokens a row of the cache can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Query heads; a multiple of the key heads, which groups of them share.
    pub query_heads: usize,
    /// Key (and value) heads.
    pub key_heads: usize,
    /// Numbers a head.
    pub head_dim: usize,
    /// Tokens that a row can hold: a multiple of [`TILE`].
    pub capacity: usize,
}

/// A new token: which row it goes to and where, its key and value, and its query.
#[derive(Clone, Copy, Debug)]
pub struct Token<'a> {
    /// The row of the cache.
    pub row: usize,
    /// Its place in the row, which holds all places before.
    pub position: usize,
    /// The query, [query_heads * head_dim]; empty where nobody asks, and key and value are all.
    pub q: &'a [f32],
    /// The key, [key_heads * head_dim].
    pub k: &'a [f32],
    /// The value, [key_heads * head_dim].
    pub v: &'a [f32],
}

impl Shape {
    /// Numbers of keys, or of values, in one row of the cache.
    #[must_use]
    pub fn row(&self) -> usize {
        self.key_heads * self.span()
    }

    /// Where one head's keys, or values, begin.
    fn place(&self, row: usize, head: usize) -> usize {
        (row * self.key_heads + head) * self.span()
    }

    /// Numbers of one head's keys, or values, in a row.
    fn span(&self) -> usize {
        self.capacity * self.head_dim
    }

    /// Numbers of a query, and of its result.
    fn width(&self) -> usize {
        self.query_heads * self.head_dim
    }

    fn check(&self) -> Result<()> {
        if self.key_heads == 0
            || self.width() == 0
            || !self.query_heads.is_multiple_of(self.key_heads)
        {
            let given = format!("{} heads for {} key heads", self.query_heads, self.key_heads);
            return Err(Error::invalid("q", given, "a multiple of the key heads"));
        }
        if self.capacity == 0 || !self.capacity.is_multiple_of(TILE) {
            let given = format!("{} places a row", self.capacity);
            return Err(Error::invalid("keys", given, format!("a multiple of {TILE}")));
        }
        Ok(())
    }

    fn check_token(&self, token: &Token<'_>, rows: usize) -> Result<()> {
        for (field, given, heads) in [
            ("q", token.q.len(), self.query_heads),
            ("k", token.k.len(), self.key_heads),
            ("v", token.v.len(), self.key_heads),
        ] {
            let none_asked = field == "q" && given == 0;
            if given != heads * self.head_dim && !none_asked {
                let expected = format!("{heads} heads of {}", self.head_dim);
                return Err(Error::invalid(field, format!("{given} numbers a token"), expected));
            }
        }
        if token.row >= rows {
            return Err(Error::invalid("rows", token.row, format!("a row below {rows}")));
        }
        if token.position >= self.capacity {
            let expected = format!("a place below {}", self.capacity);
            return Err(Error::invalid("positions", token.position, expected));
        }
        Ok(())
    }
}

/// Puts each token's key and value into the cache, and attends with each over its row up to it.
///
/// `keys` and `values` are rows of [`Shape::row`] numbers each. Result i goes to the i-th
/// [query_heads * head_dim] numbers of `out`, which are left alone where a token is `None` or has no query.
/// Scores are scaled by 1 / sqrt(head_dim). At most `threads` threads share the work, this one among them; they change no bit.
///
/// # Errors
///
/// [`Error::InvalidInput`] if a size does not fit; then nothing has been written.
pub fn attend(
    shape: Shape,
    tokens: &[Option<Token<'_>>],
    keys: &mut [f32],
    values: &mut [f32],
    out: &mut [f32],
    threads: usize,
) -> Result<()> {
    shape.check()?;
    let rows = keys.len() / shape.row();
    for (field, given, wanted) in
        [("values", values.len(), keys.len()), ("out", out.len(), tokens.len() * shape.width())]
    {
        if given < wanted {
            return Err(Error::invalid(field, format!("{given} numbers"), format!("{wanted}")));
        }
    }
    tokens.iter().flatten().try_for_each(|token| shape.check_token(token, rows))?;
    kernel::put(shape, tokens, keys, values);
    let asks = |token: &Token<'_>| !token.q.is_empty();
    if tokens.iter().flatten().all(asks) {
        share::attend(shape, tokens, (keys, values), out, threads);
    } else {
        let asking: Vec<_> = tokens.iter().map(|token| token.filter(asks)).collect();
        share::attend(shape, &asking, (keys, values), out, threads);
    }
    Ok(())
}
