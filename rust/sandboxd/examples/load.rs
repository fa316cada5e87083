//! A load generator: `load ADDRESS CONNECTIONS REQUESTS keep|new BODY` posts the file BODY to /v1/run and
//! prints what it took as JSON. Every answer must be a verdict of ok.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

type Fault = Box<dyn std::error::Error + Send + Sync>;

struct Load {
    address: String,
    request: Vec<u8>,
    keeps: bool,
    left: AtomicUsize,
}

impl Load {
    /// One connection's requests, until there are none left; how long each took.
    async fn work(&self) -> Result<Vec<Duration>, Fault> {
        let mut took = Vec::new();
        let mut kept: Option<TcpStream> = None;
        let mut buffer = Vec::with_capacity(64 << 10);
        while self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
            .is_ok()
        {
            let start = Instant::now();
            let mut stream = match kept.take() {
                Some(stream) => stream,
                None => {
                    let stream = TcpStream::connect(&self.address).await?;
                    stream.set_nodelay(true)?;
                    stream
                }
            };
            stream.write_all(&self.request).await?;
            read_answer(&mut stream, &mut buffer).await?;
            took.push(start.elapsed());
            kept = Some(stream).filter(|_| self.keeps);
        }
        Ok(took)
    }
}

async fn read_answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<(), Fault> {
    buffer.clear();
    loop {
        if stream.read_buf(buffer).await? == 0 {
            return Err("the daemon closed the connection".into());
        }
        let text = String::from_utf8_lossy(buffer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length: usize = head
            .lines()
            .find_map(|line| {
                line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok()
            })
            .ok_or("an answer without a length")?;
        if body.len() < length {
            continue;
        }
        let is_ok = head.starts_with("HTTP/1.1 200") && body.contains("\"verdict\":\"ok\"");
        return if is_ok { Ok(()) } else { Err(text.into_owned().into()) };
    }
}

async fn run() -> Result<(), Fault> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [address, connections, requests, keeps, body] = words.as_slice() else {
        return Err("expected ADDRESS CONNECTIONS REQUESTS keep|new BODY".into());
    };
    let body = std::fs::read(body)?;
    let head = format!(
        "POST /v1/run HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let load = Arc::new(Load {
        address: address.clone(),
        request: [head.into_bytes(), body].concat(),
        keeps: keeps == "keep",
        left: AtomicUsize::new(requests.parse()?),
    });
    let start = Instant::now();
    let mut workers = Vec::new();
    for _ in 0..connections.parse::<usize>()? {
        let load = Arc::clone(&load);
        workers.push(tokio::spawn(async move { load.work().await }));
    }
    let mut took = Vec::new();
    for worker in workers {
        took.extend(worker.await??);
    }
    let seconds = start.elapsed().as_secs_f64();
    took.sort_unstable();
    let at = |share: usize| took.get(took.len() * share / 100).map_or(0.0, Duration::as_secs_f64);
    println!(
        "{{\"seconds\": {seconds}, \"requests\": {}, \"p50\": {}, \"p99\": {}}}",
        took.len(),
        at(50),
        at(99)
    );
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("load: {fault}");
            ExitCode::FAILURE
        }
    }
}
