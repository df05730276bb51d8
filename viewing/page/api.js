// Questions to the server.

export async function ask(name, parameters = {}) {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(parameters)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "") query.append(key, one);
    }
  }
  const response = await fetch(`api/${name}?${query}`, { credentials: "same-origin" });
  if (!response.headers.get("Content-Type")?.startsWith("application/json")) throw new Error(await response.text());
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

// Every stage of every run that meets a condition, as {id: "run/stage", run, stage, state, logs}.
export function stagesOf(runs, wanted = () => true) {
  return runs.flatMap((run) =>
    Object.entries(run.logs)
      .filter(([, logs]) => wanted(logs))
      .map(([stage, logs]) => ({
        id: `${run.run}/${stage}`, run: run.run, stage, logs,
        state: run.stages.find((entry) => entry.stage === stage)?.state ?? "",
      })),
  );
}

export const running = (stages) => stages.find((stage) => stage.state === "running");
export const label = (stage, runs) => (runs.length > 1 ? stage.id : stage.stage);
