"""One set of programs a language, each doing the same thing in its own words."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Programs:
    """Sources of one language.

    `total` prints the sum of the integers on its standard input, then its arguments joined by `|`,
    each on a line. `leave` ends with exit code 7. `fail` prints `before`, then fails in the way of
    an error that nobody catches, which must end it with another code than 0 or by a signal, and
    must say `boom` on its standard error. `spin` never ends. `hog` takes memory without end.
    `broken` does not compile; None where nothing is compiled.
    """

    total: str
    leave: str
    fail: str
    spin: str
    hog: str
    broken: str | None = None


@cache
def binds() -> dict[str, str]:
    """What a sandbox must be shown to have all that this machine has: the Rust of rustup."""
    if Path("/usr/bin/rustc").exists() or shutil.which("rustc") is None:
        return {}
    asked = subprocess.run(
        ["rustc", "--print", "sysroot"], capture_output=True, text=True, check=True
    )
    return {"/opt/rust": asked.stdout.strip()}


PROGRAMS = {
    "python": Programs(
        total="import sys\nprint(sum(map(int, sys.stdin.read().split())))\n"
        "print('|'.join(sys.argv[1:]))\n",
        leave="raise SystemExit(7)",
        fail="print('before')\nraise ValueError('boom')",
        spin="while True: pass",
        hog="kept = []\nwhile True: kept.append(bytearray(1 << 20))",
    ),
    "c": Programs(
        total="""
#include <stdio.h>
int main(int argc, char **argv) {
  long sum = 0, each;
  while (scanf("%ld", &each) == 1) sum += each;
  printf("%ld\\n", sum);
  for (int i = 1; i < argc; i++) printf("%s%s", i > 1 ? "|" : "", argv[i]);
  puts("");
}
""",
        leave="int main(void) { return 7; }",
        fail="""
#include <assert.h>
#include <stdio.h>
int main(void) { puts("before"); fflush(stdout); assert(!"boom"); }
""",
        spin="int main(void) { for (volatile int i = 0;; i++); }",
        hog="""
#include <stdlib.h>
#include <string.h>
int main(void) { for (;;) memset(malloc(1 << 20), 1, 1 << 20); }
""",
        broken="int main(void) { return missing; }",
    ),
    "cpp": Programs(
        total="""
#include <iostream>
int main(int argc, char **argv) {
  long sum = 0, each;
  while (std::cin >> each) sum += each;
  std::cout << sum << "\\n";
  for (int i = 1; i < argc; i++) std::cout << (i > 1 ? "|" : "") << argv[i];
  std::cout << std::endl;
}
""",
        leave="int main() { return 7; }",
        fail="""
#include <iostream>
#include <stdexcept>
int main() { std::cout << "before" << std::endl; throw std::runtime_error("boom"); }
""",
        spin="int main() { for (volatile int i = 0;; i++); }",
        hog="""
#include <vector>
int main() { std::vector<std::vector<char>> kept; for (;;) kept.emplace_back(1 << 20, 1); }
""",
        broken="int main() { return missing; }",
    ),
    "rust": Programs(
        total="""
use std::io::Read;
fn main() {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).unwrap();
    println!("{}", text.split_whitespace().map(|each| each.parse::<i64>().unwrap()).sum::<i64>());
    println!("{}", std::env::args().skip(1).collect::<Vec<_>>().join("|"));
}
""",
        leave="fn main() { std::process::exit(7) }",
        fail='fn main() { println!("before"); panic!("boom") }',
        spin="fn main() { let mut i = 0u64; loop { i = std::hint::black_box(i + 1) } }",
        hog="fn main() { let mut kept = vec![]; loop { kept.push(vec![1u8; 1 << 20]) } }",
        broken="fn main() { missing }",
    ),
    "go": Programs(
        total="""
package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"
)

func main() {
	sum, each := 0, 0
	in := bufio.NewReader(os.Stdin)
	for {
		if _, err := fmt.Fscan(in, &each); err != nil {
			break
		}
		sum += each
	}
	fmt.Println(sum)
	fmt.Println(strings.Join(os.Args[1:], "|"))
}
""",
        leave='package main\nimport "os"\nfunc main() { os.Exit(7) }',
        fail='package main\nimport "fmt"\nfunc main() { fmt.Println("before"); panic("boom") }',
        spin="package main\nfunc main() { for {} }",
        hog="""
package main

func main() {
	kept := [][]byte{}
	for {
		piece := make([]byte, 1<<20)
		for i := range piece {
			piece[i] = 1
		}
		kept = append(kept, piece)
	}
}
""",
        broken="package main\nfunc main() { missing() }",
    ),
    "java": Programs(
        total="""
import java.util.Scanner;
public class Main {
  public static void main(String[] arguments) {
    long sum = 0;
    Scanner in = new Scanner(System.in);
    while (in.hasNextLong()) sum += in.nextLong();
    System.out.println(sum);
    System.out.println(String.join("|", arguments));
  }
}
""",
        leave="class Main { public static void main(String[] a) { System.exit(7); } }",
        fail="""
class Main {
  public static void main(String[] a) {
    System.out.println("before");
    assert false : "boom";
  }
}
""",
        spin="class Main { public static void main(String[] a) { for (;;); } }",
        hog="""
import java.util.ArrayList;
class Main {
  public static void main(String[] a) {
    ArrayList<byte[]> kept = new ArrayList<>();
    for (;;) kept.add(new byte[1 << 20]);
  }
}
""",
        broken="class Main { public static void main(String[] a) { missing(); } }",
    ),
    "javascript": Programs(
        total="""
const words = require("fs").readFileSync(0, "utf8").split(/\\s+/).filter(Boolean);
console.log(words.map(Number).reduce((a, b) => a + b, 0));
console.log(process.argv.slice(2).join("|"));
""",
        leave="process.exit(7)",
        fail='console.log("before"); throw new Error("boom")',
        spin="for (;;);",
        hog="const kept = []; for (;;) kept.push(Buffer.alloc(1 << 20, 1))",
    ),
    "typescript": Programs(
        total="""
import * as fs from "fs";
const words: string[] = fs.readFileSync(0, "utf8").split(/\\s+/).filter(Boolean);
console.log(words.map(Number).reduce((a: number, b: number): number => a + b, 0));
console.log(process.argv.slice(2).join("|"));
""",
        leave="process.exit(7)",
        fail='console.log("before"); throw new Error("boom")',
        spin="for (;;);",
        hog="const kept: any[] = []; for (;;) kept.push(Buffer.alloc(1 << 20, 1))",
        broken='const count: number = "three"; console.log(count)',
    ),
    "bash": Programs(
        total="""
sum=0
for each in $(cat); do sum=$((sum + each)); done
echo $sum
IFS='|'
echo "$*"
""",
        leave="exit 7",
        fail="set -e\necho before\ncat /boom\necho after",
        spin="while :; do :; done",
        hog='kept=x\nwhile :; do kept="$kept$kept"; done',
    ),
    "perl": Programs(
        total="""
my $sum = 0;
$sum += $_ for map { split } <STDIN>;
print "$sum\\n", join("|", @ARGV), "\\n";
""",
        leave="exit 7;",
        fail='$| = 1; print "before\\n"; die "boom";',
        spin="1 while 1;",
        hog="my @kept; push @kept, 'x' x (1 << 20) . @kept while 1;",
    ),
    "ruby": Programs(
        total='puts STDIN.read.split.sum(&:to_i)\nputs ARGV.join("|")\n',
        leave="exit 7",
        fail='puts "before"\nraise "boom"',
        spin="loop {}",
        hog='kept = []\nloop { kept << "x" * (1 << 20) }',
    ),
    "php": Programs(
        total="""<?php
echo array_sum(preg_split('/\\s+/', trim(stream_get_contents(STDIN)))), "\\n";
echo implode("|", array_slice($argv, 1)), "\\n";
""",
        leave="<?php exit(7);",
        fail='<?php echo "before\\n"; throw new Exception("boom");',
        spin="<?php while (true);",
        hog='<?php $kept = []; while (true) $kept[] = str_repeat("x", 1 << 20) . count($kept);',
    ),
    "lua": Programs(
        total="""
local sum = 0
for each in io.read("a"):gmatch("%S+") do sum = sum + math.tointeger(each) end
print(sum)
print(table.concat(arg, "|"))
""",
        leave="os.exit(7)",
        fail='print("before")\nerror("boom")',
        spin="while true do end",
        hog='local kept = {}\nwhile true do kept[#kept + 1] = ("x"):rep(1 << 20) .. #kept end',
    ),
}
