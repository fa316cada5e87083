//! Who waits: a line for each client, and whose turn it is.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

/// A place in a client's line: by when it must start, and a number that makes it the only one.
pub type Order = (Instant, u64);

/// Lines that take turns. In a line whoever must start first is first.
pub struct Lines<T> {
    /// The client at the front is served next, and then goes to the back.
    turns: VecDeque<Arc<str>>,
    lines: HashMap<Arc<str>, BTreeMap<Order, T>>,
    len: usize,
}

impl<T> Default for Lines<T> {
    fn default() -> Self {
        Self { turns: VecDeque::new(), lines: HashMap::new(), len: 0 }
    }
}

impl<T> Lines<T> {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Puts one in.
    pub fn push(&mut self, client: &Arc<str>, order: Order, ticket: T) {
        self.len += 1;
        if let Some(line) = self.lines.get_mut(client) {
            line.insert(order, ticket);
            return;
        }
        self.turns.push_back(Arc::clone(client));
        self.lines.insert(Arc::clone(client), BTreeMap::from([(order, ticket)]));
    }

    /// Takes the one whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        let client = self.turns.pop_front()?;
        let line = self.lines.get_mut(&client)?;
        let ticket = line.pop_first().map(|(_, ticket)| ticket);
        self.len -= usize::from(ticket.is_some());
        if line.is_empty() {
            self.lines.remove(&client);
        } else {
            self.turns.push_back(client);
        }
        ticket
    }

    /// Takes one out of its place; whether it was there.
    pub fn remove(&mut self, client: &Arc<str>, order: Order) -> bool {
        let Some(line) = self.lines.get_mut(client) else { return false };
        if line.remove(&order).is_none() {
            return false;
        }
        self.len -= 1;
        if line.is_empty() {
            self.lines.remove(client);
            self.turns.retain(|other| other != client);
        }
        true
    }

    /// How many would go before one of this client at this place, if no more came.
    pub fn ahead(&self, client: &str, order: Order) -> usize {
        let own = self.lines.get(client).map_or(0, |line| {
            // Mostly it is among the last.
            line.len() - line.range(order..).count()
        });
        let of_others = self.lines.iter().filter(|(other, _)| &***other != client);
        own + of_others.map(|(_, line)| line.len().min(own + 1)).sum::<usize>()
    }
}
